"""Messages between processes: contracts, protocol, transports, drivers and handles. Knows no supervisor."""
