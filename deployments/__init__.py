"""What runs when, and where: ``prefect.yaml`` beside this file, carried along so that an installed winnow finds it."""
