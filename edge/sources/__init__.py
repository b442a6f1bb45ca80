"""Where frames come from: cameras, files, folders, test patterns, faulty cameras."""
