//! Attested agents: which certificates of theirs count, and whether they are banned.

use std::sync::Arc;

use mesh_identity::SpiffeId;

use super::{Store, bury};
use crate::store::engine::{Engine, Table, Tx};
use crate::store::records::NodeRow;
use crate::store::view::{Event, Gone};
use crate::store::{Attested, Node, Nodes, RenewedSerial, StoreError, StoreFuture};

fn node(tx: &Tx<'_>, id: &SpiffeId) -> Result<Option<Node>, StoreError> {
    tx.get::<NodeRow>(Table::Node, id.as_str().as_bytes())?
        .map(Node::try_from)
        .transpose()
}

fn store_node(tx: &mut Tx<'_>, new: Node) -> Result<Arc<Node>, StoreError> {
    tx.put(
        Table::Node,
        new.id.as_str().as_bytes(),
        &NodeRow::from(&new),
    )?;
    let new = Arc::new(new);
    tx.show(Event::Node(new.clone()));
    Ok(new)
}

impl<E: Engine> Store<E> {
    /// Changes a stored agent, if there is one and `edit` wants to.
    fn edit_node(
        &self,
        id: &SpiffeId,
        edit: impl FnOnce(&mut Node, &mut Tx<'_>) -> Result<bool, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, Option<Arc<Node>>> {
        let id = id.clone();
        self.change(move |tx| {
            let Some(mut found) = node(tx, &id)? else {
                return Ok(None);
            };
            if edit(&mut found, tx)? {
                store_node(tx, found).map(Some)
            } else {
                Ok(None)
            }
        })
    }
}

impl<E: Engine> Nodes for Store<E> {
    fn attest(&self, mut new: Node) -> StoreFuture<'_, Attested> {
        self.change(move |tx| {
            let previous = node(tx, &new.id)?.map(Arc::new);
            new.revision = match &previous {
                Some(previous) if previous.banned => return Ok(Attested::Banned(previous.clone())),
                // What others derive from an agent is unchanged: no news for anybody.
                Some(previous) if previous.selectors == new.selectors && !new.banned => {
                    previous.revision
                }
                _ => tx.next_revision()?,
            };
            Ok(Attested::Stored {
                node: store_node(tx, new)?,
                previous,
            })
        })
    }

    fn get(&self, id: &SpiffeId) -> StoreFuture<'_, Option<Arc<Node>>> {
        self.seen(self.engine.view().read().nodes.get(id).cloned())
    }

    fn list(&self) -> StoreFuture<'_, Vec<Arc<Node>>> {
        self.seen(self.engine.view().read().nodes.values().cloned().collect())
    }

    fn renew(
        &self,
        id: &SpiffeId,
        presented: &str,
        renewed: RenewedSerial,
    ) -> StoreFuture<'_, Option<Arc<Node>>> {
        let presented = presented.to_owned();
        self.edit_node(id, move |node, _| {
            if node.banned || !node.has_serial(&presented) {
                return Ok(false);
            }
            if node.serial != presented {
                node.use_renewed();
            }
            node.renewed = Some(renewed);
            Ok(true)
        })
    }

    fn promote(&self, id: &SpiffeId, serial: &str) -> StoreFuture<'_, Option<Arc<Node>>> {
        let serial = serial.to_owned();
        self.edit_node(id, move |node, _| {
            if node.banned || !node.has_serial(&serial) {
                return Ok(false);
            }
            if node.serial != serial {
                node.use_renewed();
            }
            Ok(true)
        })
    }

    fn set_banned(&self, id: &SpiffeId, banned: bool) -> StoreFuture<'_, Option<Arc<Node>>> {
        self.edit_node(id, move |node, tx| {
            if node.banned != banned {
                node.banned = banned;
                node.revision = tx.next_revision()?;
            }
            if banned {
                node.serial.clear();
                node.renewed = None;
            }
            Ok(true)
        })
    }

    fn set_agent_version(
        &self,
        id: &SpiffeId,
        version: &str,
    ) -> StoreFuture<'_, Option<Arc<Node>>> {
        let version = version.to_owned();
        self.edit_node(id, move |node, _| {
            node.agent_version = version;
            Ok(true)
        })
    }

    fn delete(&self, id: &SpiffeId) -> StoreFuture<'_, Option<Arc<Node>>> {
        let id = id.clone();
        self.removal(move |tx| {
            let Some(old) = node(tx, &id)? else {
                return Ok(None);
            };
            tx.remove(Table::Node, id.as_str().as_bytes());
            bury(tx, Gone::Node(id))?;
            Ok(Some(Arc::new(old)))
        })
    }
}

impl Node {
    /// Whether a certificate with this serial is one that the agent may use now.
    pub fn has_serial(&self, serial: &str) -> bool {
        !serial.is_empty()
            && (self.serial == serial
                || self
                    .renewed
                    .as_ref()
                    .is_some_and(|renewed| renewed.serial == serial))
    }

    fn use_renewed(&mut self) {
        if let Some(renewed) = self.renewed.take() {
            self.serial = renewed.serial;
            self.expires_at = renewed.expires_at;
        }
    }
}
