"""One self-contained HTML page on a catalogue: `photozhpc report OUT`."""
