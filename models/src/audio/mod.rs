//! Audio front end.
