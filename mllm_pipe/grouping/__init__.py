"""Groups: a chain of commands that fires as one. `plan` says what a group is, `firing` runs it, `shell` prints it."""
