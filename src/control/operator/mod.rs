//! What an operator sees and orders: the admin socket, HTTP, the documents and the page behind them.

pub mod admin;
mod ask;
mod clients;
pub mod history;
pub mod http;
pub mod metrics;
pub mod observer;
pub mod process;
pub mod status;
