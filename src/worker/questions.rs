//! What operators ask of a worker. Each answer takes microseconds; who wants more asks again in another turn.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::packet_loop::Worker;
use crate::net::datagrams::Datagrams;
use crate::turn::effect::EndReason;
use crate::turn::{Now, SessionDetail, SessionFilter, SessionId, SessionPage};

/// Sessions that one [`Question::End`] may name: closing a socket takes microseconds.
pub const END_MAX: usize = 64;

/// A question with the way back; whoever asked may have given up by then.
#[derive(Debug)]
pub enum Question {
    /// The sessions from a slot on, one page of them.
    Sessions { from: u32, filter: Arc<SessionFilter>, to: oneshot::Sender<SessionPage> },
    /// One session with its peers.
    Session { id: SessionId, to: oneshot::Sender<Option<SessionDetail>> },
    /// End these sessions, at most [`END_MAX`]; the answer is those that were there.
    End { ids: Vec<SessionId>, reason: EndReason, to: oneshot::Sender<Vec<SessionId>> },
}

impl<D: Datagrams> Worker<D> {
    pub(super) fn answer(&mut self, now: Now, question: Question) {
        match question {
            Question::Sessions { from, filter, to } => {
                let mut page = self.server.sessions(now, from, &filter);
                page.sessions.iter_mut().for_each(|session| self.add_carried(session));
                let _ = to.send(page);
            }
            Question::Session { id, to } => {
                let mut detail = self.server.session(now, id);
                if let Some(detail) = &mut detail {
                    self.add_carried(&mut detail.session);
                }
                let _ = to.send(detail);
            }
            Question::End { mut ids, reason, to } => {
                ids.truncate(END_MAX);
                ids.retain(|id| self.server.evict(*id, reason));
                self.carry_out_effects(now);
                let _ = to.send(ids);
            }
        }
    }
}
