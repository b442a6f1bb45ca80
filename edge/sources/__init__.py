"""Where pictures come from: cameras, files, folders, test patterns, faulty cameras."""
