"""How work is carried out: the dataset contract, the one module that drives Ray, Prefect tasks, reports."""
