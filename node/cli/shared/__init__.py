"""What several commands share: arguments, output, signals. Imports no command."""
