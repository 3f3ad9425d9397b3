"""From a file to a frozen AppSpec, as a visible pipeline. Nothing is started here."""
