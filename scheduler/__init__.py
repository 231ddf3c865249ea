"""The daemon: reads reports, lets the rules decide, commits, tells the workers. Any number run; one leads."""
