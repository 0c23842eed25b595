"""The page `report.html`: `report` renders it from `templates`, `report.css` and `report.js`.

`headline_view`, `table_views`, `sample_views` and `lineage` arrange what it shows; `comparison_page` is that of two
studies.
"""
