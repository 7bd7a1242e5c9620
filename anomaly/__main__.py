"""`python -m anomaly`: the command line."""

from anomaly.commands.main import main

main()
