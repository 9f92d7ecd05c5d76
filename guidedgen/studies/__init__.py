"""A study's runs read back and laid out: as tables (Markdown, CSV, LaTeX) and as one HTML page that needs nothing else.

study      run folders -> runs with their names, and which unguided run each is paired with
tables     runs -> rows and columns -> Markdown, CSV, LaTeX
curves     traces -> means over samples        plots      points and curves -> SVG
pictures   stored images -> what is embedded   cautions   what a reader has to know before believing the figures
panels     each of these -> HTML               page       the whole, with page.css and page.js inside
html       elements, escaped
"""
