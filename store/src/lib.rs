//! A revisioned key-value store behind one trait: SQLite (embedded) today, etcd next.
