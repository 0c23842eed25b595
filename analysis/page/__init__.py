"""The page `report.html`: `report` renders its parts, `report.html.j2`, `report.css` and `report.js` are its files."""
