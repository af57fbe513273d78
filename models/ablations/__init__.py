"""The paper's ablations, tables 2a to 2g, as one command: ``python -m minnl ablate``. User's page: docs/ablations.md.

paper.py has the tables with the paper's figures, scales.py says what each row is in a network of another scale, runs.py
trains it, report.py writes the tables and draws the curves, command.py is the command.
"""
