"""This server beside its peers: the same model, texts, numbers and cores, by turns.

Each contender is a program of its own in one module, behind `contender.Contender`. `workloads`
says what is asked of them, `report` makes tables and a picture of the seconds.
"""
