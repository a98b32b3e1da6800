/* SPDX-License-Identifier: Apache-2.0 */
/* The move of one agent from node S to node D, with the registry between them, and an operator's claim
 * on a third node X. README.md says what stands for what; tests/model/run.py checks it with SPIN.
 * Step numbers are those of src/teleport/teleport.h.
 *
 * What may go wrong, each bounded by a number: */
#ifndef MOVES
#define MOVES 1 /* moves that S begins */
#endif
#ifndef CRASHES
#define CRASHES 1 /* of a daemon, or of a whole host with its VMs */
#endif
#ifndef UNKNOWNS
#define UNKNOWNS 1 /* changes of the record without an answer: done, not done, or done later */
#endif
#ifndef DUPS
#define DUPS 0 /* orders that come twice */
#endif
#ifndef FAILS
#define FAILS 1 /* bring-ups and final snapshots that fail */
#endif
/* Parts: -DLEASES: time, leases and the claim of X. -DTWICE: D takes two orders at the same time.
 * -DLATER: D suspends the agent it has got and starts it again. -DNO_...: a rule is left out.
 * -DREACH=n: is that place reached? */

/* ---- words */
#define S 0 /* nodes */
#define D 1
#define X 2
#define RUNNING 0 /* states of the record */
#define MOVING 1
#define STARTING 2
#define PARKED 3
#define CRASHED 4
#define SUSPENDED 5
#define OK 1 /* outcomes */
#define NO 2
#define UNKNOWN 3

#ifdef REACH
#define reached(n) if :: REACH == n -> assert(false) :: else -> skip fi
#else
#define reached(n) skip
#endif

/* ---- the record in the registry */
byte r_owner = S, r_epoch = 1, r_rev = 1, r_state = RUNNING;
byte r_move = 0; /* move id; 0 = none */
byte r_man = 0;  /* manifest: snapshot by number */
byte r_by = 0;   /* generation of the VM that came up last: no two bring-ups write the same */

/* ---- the store: 0 is an old snapshot, 1.. the final one of each move, LAST what D made later */
#define LAST 3
byte snap_ver[4];
bit snap_durable[4];

/* ---- VMs: S's, one for each order that D is acting upon, X's */
#define VS 0
#define VD 1
#define VX 3
bit live[4];
bit still[4];     /* workload frozen, gate closed */
byte ver[4];      /* what its memory holds: compared with hist */
byte hist = 1;    /* how often the workload has gone on; the newest memory there is */
bit excused;      /* a host died, or a thaw that may have happened was given up: that memory is gone */

byte gate = 1, leased = 1; /* S: epoch that the gate is open for, and of the lease (src/vm/lease.c) */

/* ---- time: thirds of a lease. A guest stands still two thirds after the renewal was sent. */
#define FENCE 2
#define PATIENCE 4
#ifdef LEASES
byte fence = FENCE; /* thirds left until S's guest stands still; the others' leases are not looked at */
byte sent;          /* thirds left of a lease that S asks for */
byte sent_again;    /* the same of a renewal */
byte wait_x;        /* until X takes the owner for dead */
bit same;           /* no renewal since X looked */
#define awake (fence > 0)
#define lease_send() sent = FENCE
#define lease_take() atomic { fence = sent; sent = 0 }
#define lease_now() atomic { fence = FENCE; sent = 0 }
#define beat() same = 0
#else
#define awake true
#define lease_send() skip
#define lease_take() skip
#define lease_now() skip
#define beat() skip
#endif
#define runs(vm) (live[vm] && !still[vm] && (vm != VS || awake))

/* ---- messages: the order to accept move m; never received = lost */
bit order[3];
byte order_epoch[3];
byte dups = DUPS;

byte crashes = CRASHES, unknowns = UNKNOWNS, fails = FAILS;
bit s_crash;   /* the daemon dies now */
byte d_crash;  /* the same: 1 until it is up again, 2 when it dies while it recovers */
byte d_dead;          /* tasks of D's daemon that have died of it */

/* S's disk */
byte note, note_epoch; /* hand-off note: move and epoch; 0 = none */

/* The workload goes on: from the newest memory only, else work is lost or done twice. */
inline go(vm)
{
    d_step {
        if
        :: still[vm] ->
            assert(ver[vm] == hist);
            hist++;
            ver[vm] = hist;
            still[vm] = 0
        :: else -> skip
        fi
    }
}

/* ---- compare-and-set, and reading back what became of it (src/teleport/change.c) */
inline store_record(own, ep, st, mv, mn, by)
{
    assert(snap_durable[mn]); /* durable before named */
    r_owner = own;
    r_epoch = ep;
    r_state = st;
    r_move = mv;
    r_man = mn;
    r_by = by;
    r_rev++
}

#ifdef LEASES
bit with_beat, late_with_beat; /* this change also compares the beat: X's claim */
#define matches(rev) (r_rev == rev && (!with_beat || same))
#define late_matches (r_rev == late_rev && (!late_with_beat || same))
#define late_keep() late_with_beat = with_beat
#define late_drop() late_with_beat = 0
#else
#define matches(rev) (r_rev == rev)
#define late_matches (r_rev == late_rev)
#define late_keep() skip
#define late_drop() skip
#endif
bit late; /* a change under way that comes when nobody waits for it any more */
byte late_rev, late_owner, late_epoch, late_state, late_move, late_man, late_by;
byte late_from; /* _pid: a node that starts again finds nothing of its own still under way */

inline cas(rev, own, ep, st, mv, mn, by)
{
    atomic {
        if
        :: matches(rev) ->
            store_record(own, ep, st, mv, mn, by);
            outcome = OK
        :: !matches(rev) -> outcome = NO
        :: unknowns > 0 && matches(rev) ->
            unknowns--;
            store_record(own, ep, st, mv, mn, by);
            outcome = UNKNOWN
        :: unknowns > 0 ->
            unknowns--;
            outcome = UNKNOWN
        :: unknowns > 0 && !late ->
            unknowns--;
            late = 1;
            late_keep();
            late_from = _pid;
            late_rev = rev;
            late_owner = own;
            late_epoch = ep;
            late_state = st;
            late_move = mv;
            late_man = mn;
            late_by = by;
            outcome = UNKNOWN
        fi
    }
}

/* has_happened in src/registry/registry.c: this revision or a later one, and it says the same. */
#define happened(rev, own, ep, st, mv, mn, by)                                                     \
    (r_rev > rev && r_epoch == ep && r_owner == own && r_state == st && r_move == mv &&            \
     r_man == mn && r_by == by)

/* klp_record_change. OK: rev is the new one. NO: it did not happen, and will not. UNKNOWN, only if `ends`: the
 * registry did not answer until the caller's time was over. A change without an answer is asked for again at
 * the same revision, so that the first one cannot come later; src/ uses that revision up before it asks. */
inline change_until(ends, rev, own, ep, st, mv, mn, by)
{
    do
    :: cas(rev, own, ep, st, mv, mn, by);
        if
        :: outcome == OK || (outcome == NO && !unsure) -> break
        :: else -> unsure = 1
        fi;
        atomic {
            if
            :: happened(rev, own, ep, st, mv, mn, by) -> outcome = OK; break
            :: !matches(rev) && !happened(rev, own, ep, st, mv, mn, by) -> outcome = NO; break
#ifdef NO_ASK_AGAIN
            :: matches(rev) -> outcome = NO; break
#else
            :: matches(rev) -> skip
#endif
            :: ends && unknowns > 0 -> unknowns--; outcome = UNKNOWN; break
            fi
        }
    od;
    atomic {
        unsure = 0;
        if
        :: outcome == OK -> rev = rev + 1
        :: else -> skip
        fi
    }
}
#define change(rev, own, ep, st, mv, mn, by) change_until(false, rev, own, ep, st, mv, mn, by)

proctype Late()
{
end:
    do
    :: d_step {
        late ->
        if
        :: late_matches ->
            store_record(late_owner, late_epoch, late_state, late_move, late_man, late_by);
            reached(10)
        :: else -> skip
        fi;
        late = 0;
        late_drop();
        late_from = 0;
        late_rev = 0;
        late_owner = 0;
        late_epoch = 0;
        late_state = 0;
        late_move = 0;
        late_man = 0;
        late_by = 0
    }
    od
}

/* ---- the source: src/teleport/depart.c, handoff.c; src/node/recover.c, life.c */

inline look()
{
    atomic {
        own = r_owner;
        ep = r_epoch;
        st = r_state;
        rev = r_rev;
        mv = r_move;
        mn = r_man
    }
}

proctype Source()
{
    byte outcome; bit unsure;
    byte m; /* m: moves begun */
    byte own, ep = 1, st, rev = 1, mv, mn; /* the record as this daemon knows it */
    bit boot;

begin:
    {
        if
        :: boot -> goto recover
        :: else -> goto home
        fi;

        /* The agent runs here. A renewal that is refused tells that the record has changed. */
home:
        atomic { own = S; mv = 0; st = RUNNING; boot = 0 };
end_home:
        if
        :: m < MOVES && live[VS] && r_rev == rev -> goto intent
        :: r_owner != S || r_epoch != ep -> goto lost
#ifdef NO_INTENT_BACK
        /* as if nothing had been asked for */
#else
        :: r_owner == S && r_epoch == ep && r_rev != rev -> goto lost
#endif
        fi;

intent: /* 1 */
        m++;
        change_until(true, rev, S, ep, MOVING, m, mn, 0);
        if
        :: outcome == OK -> skip
#ifdef NO_INTENT_BACK
        :: else -> goto home
#else
        :: else -> goto lost
#endif
        fi;
        if
        :: skip
        :: fails > 0 -> fails--; goto lost /* 2: the pre-copy */
        fi;

        /* 3: note, gate, freeze */
#ifndef NO_NOTE
#ifndef NO_NOTE_FIRST
        d_step { note = m; note_epoch = ep };
#endif
#endif
#ifndef NO_QUIESCE
        still[VS] = 1;
#endif
        /* 4 */
        if
        :: skip
        :: fails > 0 -> fails--; goto settle
        fi;
        d_step {
            snap_ver[m] = ver[VS];
            if
            :: !still[VS] -> hist++; ver[VS] = hist /* it goes on while it is captured */
            :: else -> skip
            fi
        };
#ifndef NO_DURABLE
        snap_durable[m] = 1;
#endif
        d_step { order[m] = 1; order_epoch[m] = ep };
#ifdef NO_NOTE_FIRST
        d_step { note = m; note_epoch = ep };
#endif
#ifdef NO_DURABLE
        snap_durable[m] = 1;
#endif
#ifdef NO_QUIESCE
        still[VS] = 1;
#endif
#ifdef NO_ABORT_CAS
        if
        :: goto thaw /* no answer came: it runs here again */
        :: skip
        fi;
#endif

        /* 7 and A: only the registry tells. */
settle:
        look();
        if
        :: own == S && st == RUNNING && ep > note_epoch -> goto go_on
        :: own == S && st == RUNNING && ep <= note_epoch -> goto take
        :: own == S && st == MOVING -> goto take
#ifndef NO_SAME_MOVE
        :: own != S && st == PARKED && ep == note_epoch + 2 -> reached(4); goto take
        :: own != S && st == PARKED && ep != note_epoch + 2 -> goto gone
        :: own != S && st == STARTING && mv == note -> goto claimed
        :: own != S && st == STARTING && mv != note -> goto gone
#else
        :: own != S && st == PARKED -> reached(4); goto take
        :: own != S && st == STARTING -> goto claimed
#endif
        :: own == S && st != RUNNING && st != MOVING -> goto gone
        :: own != S && st != PARKED && st != STARTING -> reached(1); goto gone
        fi;
claimed:
#ifdef NO_KEEP_COPY
        goto gone;
#endif
        if
        :: r_rev != rev -> goto settle
        :: r_rev == rev -> reached(3); goto take /* D is silent: at any time, which covers every length of the wait */
        fi;
take:
        lease_send();
#ifdef NO_TAKE_CAS
        r_owner = S; r_epoch = ep + 1; r_state = RUNNING; r_rev++; ep++; rev = r_rev; r_move = 0; goto thaw;
#endif
        change(rev, S, ep + 1, RUNNING, 0, mn, 0);
        if
        :: outcome == OK ->
            ep = ep + 1;
            reached(2);
            goto with_lease
        :: else -> goto settle
        fi;
go_on:
#ifndef NO_RENEW_FIRST
        lease_send();
        atomic {
            if
            :: r_owner == S && r_epoch == ep -> beat()
            :: else -> goto lost
            fi
        };
#endif
with_lease:
#ifdef NO_RENEW_FIRST
        lease_now();
#else
        lease_take();
#endif
thaw:
        leased = ep;
        atomic {
            if
            :: awake || !still[VS] -> go(VS)
            :: else -> goto lost /* fenced: the thaw is not answered */
            fi
        };
        gate = ep;
        note = 0;
        goto home;

lost: /* what does the registry say? (intent_undo, agent_lost) */
        look();
        if
        :: own != S && note != 0 -> goto settle
        :: own != S && note == 0 -> goto gone
        :: own == S && st == MOVING ->
            lease_send();
#ifdef NO_GATE_FOLLOW
            change_until(true, rev, S, ep + 1, RUNNING, 0, mn, 0);
            if
            :: outcome == OK -> ep = ep + 1; goto with_lease
            :: else -> goto home
            fi
        :: own == S && st != MOVING && !still[VS] -> leased = ep; note = 0; goto home
        :: own == S && st != MOVING && still[VS] -> goto go_on
#else
            change(rev, S, ep + 1, RUNNING, 0, mn, 0);
            if
            :: outcome == OK -> ep = ep + 1; goto with_lease
            :: else -> goto lost
            fi
        :: own == S && st != MOVING -> goto go_on
#endif
        fi;
gone:
        still[VS] = 1;
        live[VS] = 0;
        note = 0;
away:
        atomic { own = 0; ep = 0; st = 0; rev = 0; mv = 0; mn = 0; boot = 0 };
end_away:
        false;

recover:
        !late || late_from != _pid;
#ifdef NO_RECOVERY_ANSWER
        if
        :: live[VS] && unknowns > 0 -> unknowns--; still[VS] = 1; live[VS] = 0
        :: skip
        fi;
#endif
        look();
        if
        :: live[VS] && note != 0 && own == S && st == RUNNING && ep > note_epoch -> note = 0
        :: else -> skip
        fi;
#ifdef NO_RECOVERY_READ
        if
        :: live[VS] -> goto thaw
        :: else -> skip
        fi;
#endif
        if
        :: live[VS] && note != 0 -> reached(5); goto settle
        :: live[VS] && note == 0 && own != S -> goto gone
        :: live[VS] && note == 0 && own == S && st == MOVING -> goto lost
        :: live[VS] && note == 0 && own == S && st == RUNNING -> goto adopt
        :: live[VS] && note == 0 && own == S && st != MOVING && st != RUNNING -> goto gone
        :: !live[VS] && own == S && (st == RUNNING || st == MOVING) ->
            change(rev, S, ep, CRASHED, 0, mn, 0);
            if
            :: outcome == OK -> note = 0; goto away
            :: else -> goto recover
            fi
        :: !live[VS] && !(own == S && (st == RUNNING || st == MOVING)) -> goto away
        fi;
adopt:
        lease_send();
        atomic {
            if
            :: r_owner == S && r_epoch == ep -> beat()
            :: else -> goto recover
            fi
        };
        goto with_lease
    }
    unless
    {
        atomic { s_crash -> s_crash = 0 };
        goto restart
    };
restart:
    atomic { boot = 1; gate = 0; outcome = 0; unsure = 0; own = 0; ep = 0; st = 0; rev = 0; mv = 0; mn = 0 };
    goto begin
}

/* ---- the destination: src/teleport/arrive.c, bringup.c; src/node/moves.c */

#define DESTINATION 3 /* _pid of the first task of D */
#ifdef TWICE
#define TASKS 2
#else
#define TASKS 1
#endif
#ifdef NO_ONE_AT_A_TIME
#define slot_take() skip
#define slot_give() skip
#else
bit busy; /* one order at a time about an agent */
#define slot_take() atomic { !busy -> busy = 1 }
#define slot_give() busy = 0
#endif

proctype Destination(byte me)
{
    byte outcome; bit unsure;
    byte m, at_epoch;
    byte own, ep, st, rev, mv, mn;

begin:
    {
        skip;
idle:
        atomic { m = 0; at_epoch = 0; own = 0; ep = 0; st = 0; rev = 0; mv = 0; mn = 0; outcome = 0 };
end_idle:
        atomic {
            if
            :: order[1] -> m = 1
            :: order[2] -> m = 2
            fi;
            at_epoch = order_epoch[m];
            if
            :: dups > 0 -> dups--
            :: order[m] = 0
            fi
        };
        slot_take();
        look();
        if
#ifdef NO_MOVE_CHECK
        :: own == S && st == MOVING -> at_epoch = ep
        :: !(own == S && st == MOVING) -> goto refuse
#else
        :: own == S && st == MOVING && ep == at_epoch && mv == m -> skip
        :: !(own == S && st == MOVING && ep == at_epoch && mv == m) -> reached(6); goto refuse
#endif
        :: fails > 0 -> fails--; goto refuse
        fi;
#ifndef NO_DURABLE
        if
        :: snap_durable[m] -> skip /* klp_snapshot_check */
        :: else -> goto refuse
        fi;
#endif
        /* 5: the only commit point */
#ifdef NO_CLAIM_CAS
        atomic { store_record(D, at_epoch + 1, STARTING, m, m, 0); rev = r_rev };
#else
        change(rev, D, at_epoch + 1, STARTING, m, m, 0);
        if
        :: outcome == OK -> skip
        :: else -> goto refuse
        fi;
#endif
        atomic { own = D; ep = at_epoch + 1; st = STARTING; mv = m; mn = m };
        /* 6 */
raise:
        atomic { live[me] = 1; still[me] = 1; ver[me] = snap_ver[mn] };
        if
        :: skip
        :: fails > 0 -> fails--; goto undo
        fi;
#ifdef NO_RUNNING_FIRST
        go(me);
#endif
#ifdef NO_READ_BACK
        cas(rev, D, ep, RUNNING, 0, mn, me);
        if
        :: outcome == OK -> rev = rev + 1
        :: else -> skip
        fi;
#elif defined(NO_UNKNOWN)
        cas(rev, D, ep, RUNNING, 0, mn, me);
        if
        :: outcome == OK || outcome == UNKNOWN -> outcome = OK; rev = rev + 1
        :: else -> skip
        fi;
#elif defined(NO_ARRIVAL_BACK)
        change_until(true, rev, D, ep, RUNNING, 0, mn, me);
        atomic {
            if
            :: outcome == NO && r_owner == D && r_epoch == ep -> rev = r_rev
            :: else -> skip
            fi
        };
#else
        change(rev, D, ep, RUNNING, 0, mn, me);
#endif
        if
        :: outcome == OK -> skip
        :: else -> goto undo
        fi;
        go(me);
        reached(7);
        if
        :: skip
        :: fails > 0 -> /* the thaw was not answered: it may have run */
            fails--;
#ifndef NO_RUN_IS_RUN
            excused = 1;
#endif
            goto undo
        fi;
up:
        st = RUNNING;
        mv = 0;
        slot_give();
end_up:
        if
        :: r_owner != D || r_epoch != ep -> d_step { live[me] = 0; still[me] = 1 }; goto idle
#ifdef LATER
        :: r_rev == rev && mn != LAST -> goto later
#endif
        fi;
#ifdef LATER
later:
        /* suspend, and start: the same epoch, no move */
        atomic { still[me] = 1; snap_ver[LAST] = ver[me]; snap_durable[LAST] = 1 };
        mn = LAST;
        change(rev, D, ep, SUSPENDED, 0, mn, 0);
        if
        :: outcome == OK -> skip
        :: else -> goto again
        fi;
        live[me] = 0;
        change(rev, D, ep, STARTING, 0, mn, 0);
        if
        :: outcome == OK -> mv = 0; goto raise
        :: else -> goto again
        fi;
again:  /* left to people: out of this model */
        goto refuse;
#endif
undo:
        atomic { live[me] = 0; still[me] = 1 };
#ifdef NO_ARRIVAL_BACK
        change_until(true, rev, D, ep + 1, PARKED, 0, mn, 0);
#else
        look(); /* until it is known */
        if
#ifdef NO_RUN_IS_RUN
        :: own == D && (st == STARTING || st == RUNNING) ->
            change(rev, D, ep + 1, PARKED, 0, mn, 0);
#else
        :: own == D && st == STARTING && mv != 0 ->
            change(rev, D, ep + 1, PARKED, 0, mn, 0);
            if
            :: outcome == OK -> skip
            :: else -> goto undo
            fi
        :: own == D && st == STARTING && mv == 0 -> /* its own start: as it was */
            change(rev, D, ep, SUSPENDED, 0, mn, 0);
            if
            :: outcome == OK -> skip
            :: else -> goto undo
            fi
        :: own == D && st == RUNNING ->
            change(rev, D, ep, CRASHED, 0, mn, 0);
#endif
            if
            :: outcome == OK -> skip
            :: else -> goto undo
            fi
        :: own != D || (st != STARTING && st != RUNNING) -> skip
        fi;
#endif
refuse:
        slot_give();
        goto idle
    }
    unless
    {
        d_crash > 0;
        goto dead
    };
dead:
    atomic { d_dead++; unsure = 0; m = 0; at_epoch = 0; own = 0; ep = 0; st = 0; rev = 0; mv = 0; mn = 0; outcome = 0 };
    atomic { d_crash == 0 -> d_dead-- };
    goto begin
}

/* src/node/recover.c of D: all its tasks are dead. */
proctype Recovery()
{
    byte outcome; bit unsure;
    byte vm, at;
    byte own, ep, st, rev, mv, mn;

begin:
    {
    do
    :: d_crash == 1 && d_dead == TASKS && (!late || late_from < DESTINATION || late_from > _pid) ->
        at = 0;
        vm = VD;
again:
        look();
        if
        :: vm < VD + TASKS && live[vm] && at == 0 && own == D && st == RUNNING ->
            if
            :: r_owner == D && r_epoch == ep -> skip
            :: else -> goto again
            fi;
            go(vm);
            at = vm;
            vm++;
            goto again
        :: vm < VD + TASKS && live[vm] && !(at == 0 && own == D && st == RUNNING) ->
            d_step { live[vm] = 0; still[vm] = 1 };
            vm++;
            goto again
        :: vm < VD + TASKS && !live[vm] -> vm++; goto again
        :: vm == VD + TASKS && at == 0 && own == D && st == STARTING && mv == 0 ->
            change(rev, D, ep, CRASHED, 0, mn, 0);
            if
            :: outcome != OK -> goto again
            :: else -> skip
            fi
        :: vm == VD + TASKS && at == 0 && own == D && st == STARTING && mv != 0 ->
            change(rev, D, ep + 1, PARKED, 0, mn, 0);
            if
            :: outcome != OK -> goto again
            :: else -> skip
            fi
        :: vm == VD + TASKS && at == 0 && own == D && st == RUNNING ->
            change(rev, D, ep, CRASHED, 0, mn, 0);
            if
            :: outcome != OK -> goto again
            :: else -> skip
            fi
        :: vm == VD + TASKS && !(at == 0 && own == D && (st == STARTING || st == RUNNING)) -> skip
        fi;
        d_step {
            slot_give();
            d_crash = 0;
            vm = 0;
            outcome = 0;
            own = 0;
            st = 0;
            rev = 0;
            mv = 0;
            mn = 0
        }
    :: at != 0 && d_crash == 0 && (r_owner != D || r_epoch != ep) ->
        d_step { live[at] = 0; still[at] = 1; at = 0; ep = 0 }
    od
    }
    unless
    {
        d_step { d_crash == 2 -> d_crash = 1; at = 0; unsure = 0 };
        goto begin
    }
}

/* ---- what goes wrong */
proctype Faults()
{
end:
    do
    :: atomic {
        crashes > 0 && !s_crash -> crashes--;
        s_crash = 1;
        if
        :: skip
        :: excused = 1; live[VS] = 0; still[VS] = 1
        fi
    }
#ifndef LEASES
    :: atomic {
        crashes > 0 && d_crash < 2 -> crashes--;
        d_crash++;
        if
        :: skip
        :: excused = 1; live[VD] = 0; still[VD] = 1; live[VD + 1] = 0; still[VD + 1] = 1
        fi
    }
#endif
    :: crashes > 0 -> crashes = 0
    od
}

#ifdef LEASES
/* src/node/life.c, lease_renew; the keeper's side is awake() */
proctype Renewal()
{
    byte epoch;
    bit fine;

end:
    do
    :: live[VS] && leased != 0 ->
        epoch = leased;
        sent_again = FENCE;
        atomic {
            if
            :: r_owner == S && r_epoch == epoch -> fine = 1; beat()
            :: else -> fine = 0
            fi
        };
        atomic {
            if
            :: fine && epoch == leased && live[VS] ->
#ifdef NO_SENT
                fence = FENCE
#else
                fence = sent_again
#endif
            :: else -> skip
            fi;
            fine = 0;
            epoch = 0;
            sent_again = 0
        }
    od
}

proctype Time()
{
end:
    do
    :: d_step {
        sent_again > 0 || wait_x > 0 || fence > 0 || sent > 0;
        sent_again = (sent_again > 0 -> sent_again - 1 : 0);
        wait_x = (wait_x > 0 -> wait_x - 1 : 0);
        sent = (sent > 0 -> sent - 1 : 0);
#ifndef NO_FENCE
        fence = (fence > 0 -> fence - 1 : 0)
#endif
    }
    od
}

/* `kelpie restore A --claim` on X: src/node/birth.c, claim_run. Its own life is not looked at. */
proctype Operator()
{
    byte outcome; bit unsure;
    byte own, ep, st, rev, mv, mn;

    d_step { own = r_owner; ep = r_epoch; st = r_state; rev = r_rev; mn = r_man; same = 1 };
#ifndef NO_PATIENCE
    wait_x = PATIENCE;
    wait_x == 0;
#endif
    if
    :: same && r_rev == rev && own == S -> skip
    :: else -> goto end_done
    fi;
#ifndef NO_BEAT_CAS
    atomic { with_beat = 1;
#endif
    change(rev, X, ep + 1, CRASHED, 0, mn, 0);
#ifndef NO_BEAT_CAS
    with_beat = 0 };
#endif
    if
    :: outcome == OK -> ep = ep + 1
    :: else -> goto end_done
    fi;
    change(rev, X, ep, STARTING, 0, mn, 0);
    if
    :: outcome == OK -> skip
    :: else -> goto end_done
    fi;
    change(rev, X, ep, RUNNING, 0, mn, VX);
    if
    :: outcome == OK -> skip
    :: else -> goto end_done
    fi;
    /* from what the record names: the newest memory died with its node */
    d_step { hist++; ver[VX] = hist; live[VX] = 1; still[VX] = 0 };
    reached(8);
end_done:
    false
}
#endif

/* ---- what must hold */
#define running (runs(VS) + runs(VD) + runs(VD + 1) + runs(VX))

proctype Watch()
{
    if
    :: atomic { running > 1 -> assert(false) } /* two copies run */
#ifndef LEASES
    :: timeout -> atomic { /* nothing goes on any more: every move has ended, and well */
        assert(r_state != MOVING && (r_state != STARTING));
        assert(r_state == RUNNING || excused || r_man == LAST);
        assert(r_state != RUNNING || running == 1);
        assert(r_state != RUNNING || r_owner != S || (runs(VS) && gate == r_epoch && leased == r_epoch));
        assert(r_state != RUNNING || r_owner != D || runs(VD) || runs(VD + 1));
        reached(9)
    }
#endif
    fi
}

init
{
    atomic {
        still[VD] = 1;
        still[VD + 1] = 1;
        still[VX] = 1;
        live[VS] = 1;
        ver[VS] = 1;
        snap_durable[0] = 1;
        run Late();
        run Source();
#ifndef LEASES
        run Destination(VD);
#endif
#ifdef TWICE
        run Destination(VD + 1);
#endif
#ifndef LEASES
        run Recovery();
#endif
        run Faults();
#ifdef LEASES
        run Renewal();
        run Time();
        run Operator();
#endif
        run Watch()
    }
}
