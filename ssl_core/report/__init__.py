"""Pictures and the offline HTML page. ``pictures`` gives PNG bytes, ``html`` renders the page."""
