"""Batches that survive: a file of rows -> a ledger on disk -> pictures, each recorded when it is safely written.

    sources.py   a JSONL, CSV or Parquet file, row by row        jobs.py      a row -> a checked job with an id
    queueing.py  jobs -> the ledger, in short transactions       ledger.py    what is queued, leased, done, failed
    artist.py    requests -> encoded pictures, or a reason       crews.py     who runs artists: here, or in processes
    keeping.py   pictures -> files, then the record of them      driver.py    the loop: lease, draw, keep
    actors.py    a crew on a Ray cluster; painter.py: an actor   cluster.py   joining it, and which machines it has
    presence.py  which commands are at work in a folder          manifest.py  all of it as lines of JSON, at the end

The ledger and the files belong to the driver alone. An artist takes and gives plain data, so that it can run anywhere.
"""
