"""Personal data: detectors (text → spans), surrogates, and the leak check that looks at the result by another path."""
