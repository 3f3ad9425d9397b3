"""Who may come in, and as whom. No bytes of connections pass here."""
