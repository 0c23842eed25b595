"""The reading: what a store holds becomes tables, figures and one report, in the layout of the paper.

`frames` (plan + store -> pandas), `tables` (the paper's table families), `figures`, `report` (one self-contained
page), `reproduce` (the command). Nothing here loads torch.
"""
