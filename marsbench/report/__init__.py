"""Reports over run folders: tables, figures, one HTML page, and paired comparisons."""
