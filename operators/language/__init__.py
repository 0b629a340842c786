"""Engines that generate and score text behind one interface, and operators on natural language."""
