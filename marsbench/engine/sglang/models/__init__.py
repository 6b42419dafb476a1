"""The one model architecture SGLang has to know here; importing all of its own takes ten seconds."""
