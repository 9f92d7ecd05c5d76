"""Many runs: sweeps and their state, and a study's runs as tables (Markdown, CSV, LaTeX) and as one self-contained HTML page.

sweeps     overrides -> runs and their folders status     what the runs have come to

study      run folders -> runs with their names, and which unguided run each is paired with
tables     runs -> rows and columns -> Markdown, CSV, LaTeX
curves     traces -> means over samples        plots      points and curves -> SVG
pictures   stored images -> what is embedded   cautions   warnings about the figures
law        samplers -> how near they come to laws that are known
panels     each of these -> HTML               page       the complete page, with page.css and page.js inside
html       elements, escaped
"""
