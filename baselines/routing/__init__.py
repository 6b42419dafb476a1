"""Published routers for several engines, one file each."""
