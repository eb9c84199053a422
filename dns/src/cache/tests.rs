use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, SOA};

use super::*;

fn key(name: &str) -> Key {
    Key {
        name: Name::from_ascii(name).unwrap(),
        kind: RecordType::A,
        dnssec_ok: false,
        checking_disabled: false,
    }
}

fn record(ttl: u32) -> Record {
    Record::from_rdata(
        Name::from_ascii("a.test.").unwrap(),
        ttl,
        RData::A(A([1, 2, 3, 4].into())),
    )
}

fn success(ttl: u32) -> Answer {
    Answer {
        answers: vec![record(ttl)],
        ..Answer::default()
    }
}

fn denial(code: ResponseCode, ttl: u32, minimum: u32) -> Answer {
    let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
    Answer {
        code,
        authorities: vec![Record::from_rdata(Name::root(), ttl, RData::SOA(soa))],
        ..Answer::default()
    }
}

#[test]
fn lifetimes() {
    let seconds = |answer: &Answer| {
        let (says, ttl) = lifetime(answer);
        (says, ttl.as_secs())
    };
    let (yes, no) = (Says::Success, Says::Denial);
    let mut two = success(300);
    two.answers.push(record(20));
    let mut alias_to_nothing = success(300);
    alias_to_nothing.authorities = denial(ResponseCode::NoError, 60, 9).authorities;
    let cases = [
        (success(300), (yes, 300)),
        (two, (yes, 20)),
        (success(0), (yes, 0)),
        (alias_to_nothing, (yes, 9)),
        (denial(ResponseCode::NXDomain, 60, 10), (no, 10)),
        (denial(ResponseCode::NoError, 5, 10), (no, 5)),
        (Answer::of(ResponseCode::NXDomain), (no, 0)),
        (Answer::default(), (no, 0)),
        (Answer::of(ResponseCode::ServFail), (no, 5)),
        (Answer::of(ResponseCode::Refused), (no, 0)),
    ];
    for (answer, wanted) in cases {
        assert_eq!(seconds(&answer), wanted, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_grows_old_and_goes() {
    let cache = Cache::new(Duration::from_secs(30));
    cache.insert(key("a.test."), &success(300), 100);
    cache.insert(key("b.test."), &denial(ResponseCode::NXDomain, 20, 20), 100);
    tokio::time::advance(Duration::from_secs(12)).await;
    let (says, answer) = cache.get(&key("A.Test.")).unwrap();
    assert_eq!(
        (says, answer.answers[0].ttl),
        (Says::Success, 18),
        "no longer than configured"
    );
    let (says, answer) = cache.get(&key("b.test.")).unwrap();
    assert_eq!((says, answer.authorities[0].ttl), (Says::Denial, 8));
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(cache.get(&key("b.test.")).is_none());
    assert!(cache.get(&key("a.test.")).is_some());
    let mut other = key("a.test.");
    other.dnssec_ok = true;
    assert!(cache.get(&other).is_none(), "another question");
    // What was denied and then exists is denied no more.
    cache.insert(key("a.test."), &denial(ResponseCode::NXDomain, 20, 20), 100);
    assert_eq!(cache.get(&key("a.test.")).unwrap().0, Says::Denial);
    assert_eq!((cache.len(Says::Success), cache.len(Says::Denial)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_number_and_the_bytes_have_bounds() {
    let cache = Cache::new(Duration::from_secs(30));
    let mut evicted = 0;
    for number in 0..CAPACITY + 100 {
        evicted += cache.insert(key(&format!("n{number}.test.")), &success(30), 10).1;
    }
    assert_eq!((cache.len(Says::Success), evicted), (CAPACITY, 100));
    assert!(cache.get(&key("n0.test.")).is_none(), "the oldest go first");
    cache.insert(key("large.test."), &success(30), MAX_BYTES);
    assert_eq!(cache.len(Says::Success), 1);
    let shelf = cache.success.lock();
    assert_eq!((shelf.bytes, shelf.order.len()), (MAX_BYTES, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cache_of_no_seconds_keeps_nothing() {
    let cache = Cache::new(Duration::ZERO);
    cache.insert(key("a.test."), &success(300), 100);
    assert!(cache.get(&key("a.test.")).is_none());
}
