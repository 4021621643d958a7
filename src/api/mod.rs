//! What commands, the admin socket and HTTP say to each other: types only, so that the commands need not know the process that
//! answers them.

pub mod event;
pub mod question;
pub mod schema;
pub mod status;
