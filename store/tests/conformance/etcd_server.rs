//! The factory of stores on etcd.

use parking_lot::Mutex;
use skiff_store::Store;
use skiff_store::etcd::{self, Options};

use super::member::Member;

/// A place for a store: one server.
#[derive(Debug)]
pub(crate) struct Etcd {
    member: Mutex<Member>,
    _directory: tempfile::TempDir,
}

impl super::suite::Factory for Etcd {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            member: Mutex::new(Member::new(directory.path(), "alone")),
            _directory: directory,
        }
    }

    /// Each time the server is killed and started anew.
    async fn open(&self) -> Box<dyn Store> {
        let url = {
            let mut member = self.member.lock();
            member.kill();
            let introduction = member.introduction();
            member.start(&[introduction]);
            member.url()
        };
        let options = Options {
            compaction_interval: None,
            ..Options::new([url])
        };
        Box::new(etcd::connect(options).await.unwrap())
    }
}
