// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The stored values: one JSON document.

use std::fmt;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value};

use crate::sync::lock;

/// Why a document is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is nothing to change.
    #[error("The MMDS data store is not initialized: store a document by PUT /mmds first")]
    Empty,
    /// The document would be too large.
    #[error(
        "the document would have more than {limit} bytes; shorten it, or raise --mmds-size-limit"
    )]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

/// A document that the host writes and the guest reads. Clones are the same one.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    limit: usize,
    /// Held while a change is prepared. Readers don't take it.
    changes: Mutex<()>,
    value: Mutex<Option<Arc<Value>>>,
}

impl Store {
    /// An empty store for a document of up to `limit` bytes of JSON.
    pub fn new(limit: usize) -> Self {
        Store(Arc::new(Inner {
            limit,
            changes: Mutex::new(()),
            value: Mutex::new(None),
        }))
    }

    /// The most bytes of a document's JSON.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// The document, or `null` if there is none. Never waits for a change.
    pub fn get(&self) -> Arc<Value> {
        lock(&self.0.value).clone().unwrap_or_default()
    }

    /// Stores a document in place of the one that is there.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn put(&self, value: Value) -> Result<(), StoreError> {
        let _change = lock(&self.0.changes);
        self.set(value)
    }

    /// Changes the document by a JSON Merge Patch (RFC 7396).
    ///
    /// # Errors
    /// [`StoreError`]. Nothing has changed then.
    pub fn patch(&self, patch: Value) -> Result<(), StoreError> {
        let _change = lock(&self.0.changes);
        let value = lock(&self.0.value).clone().ok_or(StoreError::Empty)?;
        let mut value = Value::clone(&value);
        merge(&mut value, patch);
        self.set(value)
    }

    fn set(&self, value: Value) -> Result<(), StoreError> {
        let limit = self.0.limit;
        if value.to_string().len() > limit {
            return Err(StoreError::TooLarge { limit });
        }
        *lock(&self.0.value) = Some(Arc::new(value));
        Ok(())
    }
}

/// The same store, not the same document.
impl PartialEq for Store {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Store {}

/// Without the document, which may have secrets.
impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("limit", &self.0.limit)
            .finish_non_exhaustive()
    }
}

/// RFC 7396, section 2. The parser of JSON limits the depth.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}
