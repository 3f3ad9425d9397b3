"""What is counted and how it is added up: numbers for snapshots, metrics and reports. Nothing is decided by them."""
