"""Recipes: one file of numbers and one small package of code for each model trained here."""
