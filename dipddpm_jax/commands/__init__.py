"""What happens when a command is typed, one command a file; `loop` is the resumable loop that they share."""
