//! The controller manager: one file a controller, under upstream's name.
