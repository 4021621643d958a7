//! What is found on the way: errors and warnings, with their places.

use std::cell::{Cell, RefCell};

use super::fields::Field;
use super::yaml::Place;

/// Something to say about a place in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Line and column in the file.
    pub at: Place,
    /// Path of the key.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Spot<T> {
    /// Line and column in the file.
    pub at: Place,
    /// Path of the key, with indices.
    pub path: String,
    /// The value that stands there.
    pub value: T,
}

impl<T> Spot<T> {
    fn finding(&self, message: impl Into<String>) -> Finding {
        Finding {
            at: self.at,
            path: self.path.clone(),
            message: message.into(),
        }
    }

    /// Another value of the same place.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Spot<U> {
        Spot {
            at: self.at,
            path: self.path,
            value: f(self.value),
        }
    }
}

/// Findings about one file, collected while it is read.
#[derive(Debug, Default)]
pub struct Notes {
    /// Reasons to refuse the file.
    pub errors: RefCell<Vec<Finding>>,
    /// Reasons to think again.
    pub warnings: RefCell<Vec<Finding>>,
    /// Errors beyond [`ERRORS_MAX`], counted only.
    pub more: Cell<usize>,
    /// Rows that were read: none may be forgotten.
    #[cfg(test)]
    pub read: RefCell<std::collections::BTreeSet<&'static str>>,
}

/// Most errors that are reported.
pub const ERRORS_MAX: usize = 1000;

impl Notes {
    /// Adds a reason to refuse the file.
    pub fn error<T>(&self, spot: &Spot<T>, message: impl Into<String>) {
        match self.full() {
            true => self.more.set(self.more.get() + 1),
            false => self.errors.borrow_mut().push(spot.finding(message)),
        }
    }

    /// Whether there are so many errors that looking for remedies is a waste.
    pub fn full(&self) -> bool {
        self.errors.borrow().len() >= ERRORS_MAX
    }

    /// Remembers that a row was read.
    pub fn note_read(&self, _row: &'static Field) {
        #[cfg(test)]
        self.read.borrow_mut().insert(_row.path);
    }

    /// Adds a warning, with which the file is still taken.
    pub fn warn<T>(&self, spot: &Spot<T>, message: impl Into<String>) {
        self.warnings.borrow_mut().push(spot.finding(message));
    }
}
