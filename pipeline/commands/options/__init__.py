"""What is typed behind `tayyar`, a file for each command: declare, shared, the commands, parser. No Beam in here."""
