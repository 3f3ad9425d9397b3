"""The operating system's side: processes, runtime directory, output, the guardian against orphans."""
