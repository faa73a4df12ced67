"""Figures for papers. Data of a figure are made by pure functions of records and are typed; drawing them is apart."""
