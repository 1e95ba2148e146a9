"""Runtimes: who calls whom. Each calls ``federation.visit`` and ``federation.close_round`` and adds nothing."""
