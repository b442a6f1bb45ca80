"""From a blank card to a publishing node: what runs on the technician's machine."""
