"""The two commands: smartipc-supervise and smartipc."""
