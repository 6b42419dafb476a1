"""The control plane: sessions, admission, tool slots, and the views that policies decide on."""
