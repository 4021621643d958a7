//! What a configuration was made from, for whoever wants to see it written down.

use std::sync::Arc;

use super::yaml::Node;

/// What a configuration was made from. It says nothing beyond what the configuration means, so any two are equal.
#[derive(Debug, Clone)]
pub struct Written(Arc<Node>);

impl PartialEq for Written {
    fn eq(&self, _: &Written) -> bool {
        true
    }
}

impl From<Node> for Written {
    fn from(node: Node) -> Written {
        Written(Arc::new(node))
    }
}

impl Written {
    /// The file as the parser read it.
    pub fn node(&self) -> &Node {
        &self.0
    }
}
