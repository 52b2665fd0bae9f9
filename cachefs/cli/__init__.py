"""The command line. Each command is a module that is loaded when the command is used."""
