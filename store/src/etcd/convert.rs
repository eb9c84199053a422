//! Between our words and etcd's.

use std::sync::Arc;

use super::Range;
use super::failure::garbled;
use super::protocol::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use super::protocol::etcdserverpb::request_op::Request;
use super::protocol::etcdserverpb::response_op::Response;
use super::protocol::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
};
use super::protocol::mvccpb::KeyValue;
use crate::{Entry, Error, Prefix, Revision, Write};

/// How our revisions follow from etcd's: a store that was restored goes on above where it was, which etcd cannot by itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Scale {
    /// What is added to etcd's.
    pub(super) offset: u64,
}

impl Scale {
    /// The revision to read or watch from. What lies before the restore is etcd's first, which is compacted; zero stays what it is.
    pub(super) fn to_wire(self, revision: Revision) -> i64 {
        match revision.0 {
            0 => 0,
            ours => i64::try_from(ours.saturating_sub(self.offset).max(1)).unwrap_or(i64::MAX),
        }
    }

    /// The revision that a key must have; none has one from before the restore.
    fn to_exact(self, revision: Revision) -> i64 {
        let wire = revision.0.checked_sub(self.offset).filter(|wire| *wire > 0);
        wire.and_then(|wire| i64::try_from(wire).ok()).unwrap_or(-1)
    }

    pub(super) fn ours(self, revision: i64) -> Revision {
        match u64::try_from(revision) {
            Ok(wire) if wire > 0 => Revision(wire.saturating_add(self.offset)),
            _ => Revision(0),
        }
    }

    pub(super) fn revision(self, header: Option<ResponseHeader>) -> Revision {
        self.ours(header.unwrap_or_default().revision)
    }

    pub(super) fn entry(self, kv: KeyValue) -> Result<Entry, Error> {
        let key = std::str::from_utf8(&kv.key).map_err(|_| garbled("a key is not UTF-8"))?;
        Ok(Entry {
            key: Arc::from(key),
            create_revision: self.ours(kv.create_revision),
            mod_revision: self.ours(kv.mod_revision),
            value: kv.value,
        })
    }

    /// What a transaction found that did not apply.
    pub(super) fn current(self, responses: Vec<ResponseOp>) -> Result<Option<Entry>, Error> {
        match responses.into_iter().next().and_then(|response| response.response) {
            Some(Response::ResponseRange(range)) => {
                let first = range.kvs.into_iter().next();
                first.map(|kv| self.entry(kv)).transpose()
            }
            _ => Err(garbled("a transaction answers something else than was asked")),
        }
    }
}

/// The keys of a prefix, behind the key `after`.
pub(super) fn range(prefix: &Prefix, after: Option<&str>) -> Range {
    let start = match after {
        // The least key that is greater.
        Some(after) if after >= prefix.start() => [after.as_bytes(), b"\0"].concat(),
        _ => prefix.start().as_bytes().to_vec(),
    };
    (start, prefix.end().into_bytes())
}

/// The change under its condition; what is there instead, when that does not hold.
pub(super) fn transaction(write: Write, scale: Scale) -> TxnRequest {
    let key = bytes::Bytes::copy_from_slice(write.key().as_bytes());
    let compare = |target: CompareTarget, result: CompareResult, union: TargetUnion| Compare {
        result: result.into(),
        target: target.into(),
        key: key.clone(),
        target_union: Some(union),
    };
    let at = |revision| {
        compare(
            CompareTarget::Mod,
            CompareResult::Equal,
            TargetUnion::ModRevision(scale.to_exact(revision)),
        )
    };
    let put = |value| {
        Request::RequestPut(PutRequest {
            key: key.clone(),
            value,
        })
    };
    let delete = Request::RequestDeleteRange(DeleteRangeRequest {
        key: key.clone(),
        ..DeleteRangeRequest::default()
    });
    let (condition, change) = match write {
        Write::Create { value, .. } => {
            let absent = TargetUnion::CreateRevision(0);
            (compare(CompareTarget::Create, CompareResult::Equal, absent), put(value))
        }
        Write::Update { value, expected, .. } => (at(expected), put(value)),
        Write::Delete {
            expected: Some(expected),
            ..
        } => (at(expected), delete),
        Write::Delete { expected: None, .. } => {
            let present = TargetUnion::CreateRevision(0);
            (compare(CompareTarget::Create, CompareResult::Greater, present), delete)
        }
    };
    let look = Request::RequestRange(RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    });
    let operation = |request| RequestOp { request: Some(request) };
    TxnRequest {
        compare: vec![condition],
        success: vec![operation(change)],
        failure: vec![operation(look)],
    }
}

#[cfg(test)]
mod tests {
    use super::{Scale, range};
    use crate::{Prefix, Revision};

    #[test]
    fn revisions_from_before_a_restore_are_nobodys() {
        let scale = Scale { offset: 1000 };
        for (ours, wire) in [(1001, 1), (1005, 5)] {
            assert_eq!(scale.to_wire(Revision(ours)), wire);
            assert_eq!(scale.to_exact(Revision(ours)), wire);
            assert_eq!(scale.ours(wire), Revision(ours));
        }
        assert_eq!((scale.to_wire(Revision(1000)), scale.to_exact(Revision(1000))), (1, -1));
        assert_eq!((scale.to_wire(Revision(3)), scale.to_exact(Revision(3))), (1, -1));
        assert_eq!((scale.to_wire(Revision(0)), scale.ours(0)), (0, Revision(0)));
    }

    #[test]
    fn a_page_begins_behind_its_key() {
        let prefix = Prefix::new("/a");
        let end = b"/a0".to_vec();
        assert_eq!(range(&prefix, None), (b"/a/".to_vec(), end.clone()));
        assert_eq!(range(&prefix, Some("/a/x")), (b"/a/x\0".to_vec(), end.clone()));
        assert_eq!(range(&prefix, Some("/")), (b"/a/".to_vec(), end));
    }
}
