"""A page for the browser on what the ledger knows: read-only, offline, for its user alone.

    condorctl web                       # serves it on loopback, until Ctrl-C
    condorctl web --export run.html     # one file of one run, to pass on

The page is one file of plain HTML, CSS and JavaScript (`page`); what it shows comes as JSON
(`views`), asked for every few seconds (`server`) or lying in the file.
"""
