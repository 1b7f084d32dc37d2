// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * SMB2 CHANGE_NOTIFY: life of watches and requests, see notify_impl.h.
 */

#include <linux/fs.h>
#include <linux/slab.h>

#include "notify_impl.h"

DEFINE_SPINLOCK(notify_lock);
LIST_HEAD(notify_watches);
LIST_HEAD(notify_items);
LIST_HEAD(notify_ends);
DEFINE_HASHTABLE(notify_flight, 10);
LIST_HEAD(notify_waiting);
DEFINE_HASHTABLE(notify_requests, 10);
u64 notify_last_id;
u32 notify_daemon;
unsigned long notify_progress;
size_t notify_bytes;
struct workqueue_struct *notify_wq;
struct workqueue_struct *notify_send_wq;
struct workqueue_struct *notify_ask_wq;
struct workqueue_struct *notify_rdma_wq;

void notify_item_put(struct notify_item *item)
{
	struct notify_verdict *verdict, *tmp;
	struct notify_watch *watch = NULL;

	if (!refcount_dec_and_test(&item->refs))
		return;
	if (item_is_request(item))
		watch = item_request(item)->watch;
	else
		list_for_each_entry_safe(verdict, tmp,
					 &item_watch(item)->verdicts, entry)
			kfree(verdict);
	kfree(item);
	if (watch)
		notify_item_put(&watch->item);
}

/* Nobody waits for the daemon to learn of an end: several share one wake-up. */
#define NOTIFY_END_DELAY	(HZ / 100)

/* Wakes the daemon. Items are queued under spinlocks: hence a work item. */
static void notify_bell_work(struct work_struct *ws)
{
	bool waits;

	spin_lock(&notify_lock);
	waits = !list_empty(&notify_items) || !list_empty(&notify_ends);
	spin_unlock(&notify_lock);
	if (waits && ksmbd_notify_ring() == -ENOMEM)
		queue_delayed_work(notify_wq, to_delayed_work(ws), HZ / 10);
}

static DECLARE_DELAYED_WORK(notify_bell, notify_bell_work);
static bool notify_bell_held;	/* whoever has notify_lock will ring it */
static bool notify_bell_due;	/* if it is to be rung */

void notify_item_queue(struct notify_item *item, u32 type)
{
	struct list_head *queue = notify_queue(type);

	lockdep_assert_held(&notify_lock);

	if (queue == &notify_ends)
		queue_delayed_work(notify_wq, &notify_bell, NOTIFY_END_DELAY);
	else if (!list_empty(queue))
		; /* it has been rung */
	else if (notify_bell_held)
		notify_bell_due = true;
	else
		mod_delayed_work(notify_wq, &notify_bell, 0);
	if (list_empty(&item->entry))
		refcount_inc(&item->refs);
	else if (item->type == type)
		return;
	item->type = type;
	list_move_tail(&item->entry, queue);
}

void notify_item_unqueue(struct notify_item *item)
{
	lockdep_assert_held(&notify_lock);

	if (list_empty(&item->entry))
		return;
	list_del_init(&item->entry);
	notify_item_put(item);
}

/* @item has been acknowledged, or nobody waits for that any more. */
void notify_item_land(struct notify_item *item)
{
	lockdep_assert_held(&notify_lock);

	if (!hash_hashed(&item->flight))
		return;
	hash_del(&item->flight);
	notify_item_put(item);
}

void notify_request_set_handled(struct ksmbd_notify_request *req)
{
	lockdep_assert_held(&notify_lock);

	req->handled = true;
	list_del_init(&req->waiting);
	notify_item_land(&req->item);
}

/*
 * Lets STATUS_PENDING go out. If the watch is not armed yet, because the daemon
 * is late or absent, its client is told to rescan once it is.
 */
void notify_request_promise(struct ksmbd_notify_request *req)
{
	struct notify_watch *watch = req->watch;

	lockdep_assert_held(&notify_lock);

	if (req->handled)
		return;
	notify_request_set_handled(req);
	/* It was cancelled, and the daemon has never heard of it. */
	if (req->done && !req->known)
		notify_item_unqueue(&req->item);
	if (watch->fp) {
		watch->promised = true;
		/* A daemon that has the watch gets another item for this. */
		if (!watch->armed)
			watch->rescan = true;
	}
	notify_request_send(req);
}

static bool request_take(struct ksmbd_notify_request *req)
{
	lockdep_assert_held(&notify_lock);

	if (req->taken)
		return false;
	req->taken = true;
	list_del_init(&req->entry);
	hash_del(&req->hash);
	return true;
}

void notify_request_finish(struct ksmbd_notify_request *req, __le32 status)
{
	lockdep_assert_held(&notify_lock);

	req->status = status;
	req->done = true;
	if (status != STATUS_CANCELLED)
		notify_request_set_handled(req);

	if (!req->known) {
		if (req->handled)
			notify_item_unqueue(&req->item);
	} else if (req->watch->fp) {
		notify_item_queue(&req->item, KSMBD_NOTIFY_ITEM_TYPE_CANCEL);
	}
	notify_request_send(req);
}

/*
 * Ends @req without the daemon. Only a cancelled request still waits until
 * the daemon has acknowledged it, so that the watch is armed by the time the
 * client learns of its end; the other ends end the watch as well. A request
 * that the daemon has completed ends as that says, and with @status only if
 * its user may see none of the records.
 */
void notify_request_end(struct ksmbd_notify_request *req, __le32 status)
{
	lockdep_assert_held(&notify_lock);

	if (request_take(req))
		notify_request_finish(req, status);
	else if (!req->done && !req->status)
		req->status = status;
}

/* Ends a watch; its requests end with @status, held by @work if there is one. */
void notify_watch_close(struct notify_watch *watch, __le32 status,
			struct ksmbd_work *work)
{
	struct ksmbd_notify_request *req, *tmp, **tail = NULL;

	lockdep_assert_held(&notify_lock);

	watch->fp->notify = NULL;
	watch->fp = NULL;
	list_del(&watch->entry);

	if (work)
		for (tail = &work->notify_held; *tail;
		     tail = &(*tail)->held_next)
			;
	list_for_each_entry_safe(req, tmp, &watch->requests, entry) {
		if (tail && !req->held && !req->taken) {
			req->held = true;
			*tail = req;
			tail = &req->held_next;
		}
		notify_request_end(req, status);
	}

	if (watch->known)
		notify_item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_UNWATCH);
	else
		notify_item_unqueue(&watch->item);
	notify_item_land(&watch->item);
	fput(watch->dir);
	notify_item_put(&watch->item);
}

/*
 * What @watch was to tell last may not have reached its client: the connection
 * is gone, but not the handle. A client that has asked again has got it.
 */
void notify_watch_doubt(struct notify_watch *watch)
{
	lockdep_assert_held(&notify_lock);

	if (!watch->told)
		return;
	watch->told = false;
	watch->rescan = true;
	if (watch->armed)
		notify_item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_WATCH);
}

/* Whether there is a watch, or was just now. */
bool ksmbd_notify_watching(void)
{
	return !list_empty(&notify_watches);
}

static void notify_timeout_work(struct work_struct *ws);
static DECLARE_DELAYED_WORK(notify_timeout, notify_timeout_work);

/* The daemon is late: STATUS_PENDING no longer waits for it. */
static void notify_timeout_work(struct work_struct *ws)
{
	const unsigned long timeout = msecs_to_jiffies(KSMBD_NOTIFY_ACK_TIMEOUT);
	struct ksmbd_notify_request *req, *tmp;
	unsigned long now = jiffies, until;

	spin_lock(&notify_lock);
	list_for_each_entry_safe(req, tmp, &notify_waiting, waiting) {
		/* A daemon that works through many items is slow, not stuck. */
		until = req->deadline;
		if (time_before(until, notify_progress + timeout))
			until += min(notify_progress + timeout - until,
				     KSMBD_NOTIFY_ACK_PATIENCE * timeout);
		if (time_before(now, until)) {
			mod_delayed_work(notify_wq, &notify_timeout,
					 until - now);
			break;
		}
		notify_request_promise(req);
	}
	spin_unlock(&notify_lock);
}

static void request_offer(struct ksmbd_notify_request *req)
{
	struct notify_watch *watch = req->watch;

	lockdep_assert_held(&notify_lock);

	req->offered = true;
	if (!notify_daemon || !watch->fp) {
		notify_request_promise(req);
		return;
	}
	if (!watch->known)
		notify_item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_WATCH);
	notify_item_queue(&req->item, KSMBD_NOTIFY_ITEM_TYPE_REQUEST);

	req->deadline = jiffies + msecs_to_jiffies(KSMBD_NOTIFY_ACK_TIMEOUT);
	list_add_tail(&req->waiting, &notify_waiting);
	queue_delayed_work(notify_wq, &notify_timeout,
			   msecs_to_jiffies(KSMBD_NOTIFY_ACK_TIMEOUT));
}

/**
 * ksmbd_notify_release() - let go of requests held for a response
 * @work:	smb work whose response has been written
 */
void ksmbd_notify_release(struct ksmbd_work *work)
{
	struct ksmbd_notify_request *req;
	bool ring;

	if (!work->notify_held)
		return;

	spin_lock(&notify_lock);
	notify_bell_held = true;
	while ((req = work->notify_held)) {
		work->notify_held = req->held_next;
		req->held_next = NULL;
		req->held = false;
		if (!req->offered && !req->handled)
			request_offer(req);
		notify_request_send(req);
	}
	ring = notify_bell_due;
	notify_bell_held = false;
	notify_bell_due = false;
	spin_unlock(&notify_lock);

	/* The bell can be rung from here: that saves waking a worker. */
	if (ring)
		notify_bell_work(&notify_bell.work);
}

int ksmbd_notify_init(void)
{
	int err = -ENOMEM;

	notify_wq = alloc_workqueue("ksmbd-notify", WQ_UNBOUND, 0);
	if (!notify_wq)
		return err;
	notify_send_wq = alloc_workqueue("ksmbd-notify-send", WQ_UNBOUND, 0);
	if (!notify_send_wq)
		goto err_wq;
	notify_ask_wq = alloc_workqueue("ksmbd-notify-ask", WQ_UNBOUND,
					WQ_MAX_ACTIVE);
	if (!notify_ask_wq)
		goto err_send_wq;
	notify_rdma_wq = alloc_workqueue("ksmbd-notify-rdma", WQ_UNBOUND, 0);
	if (!notify_rdma_wq)
		goto err_ask_wq;
	err = ksmbd_notify_netlink_init();
	if (!err)
		return 0;
	destroy_workqueue(notify_rdma_wq);
err_ask_wq:
	destroy_workqueue(notify_ask_wq);
err_send_wq:
	destroy_workqueue(notify_send_wq);
err_wq:
	destroy_workqueue(notify_wq);
	return err;
}

/* After all connections are gone, and their requests and watches with them. */
void ksmbd_notify_exit(void)
{
	ksmbd_notify_netlink_exit();
	ksmbd_notify_unregister(notify_daemon);
	cancel_delayed_work_sync(&notify_timeout);
	cancel_delayed_work_sync(&notify_bell);
	destroy_workqueue(notify_rdma_wq);
	destroy_workqueue(notify_ask_wq);
	destroy_workqueue(notify_send_wq);
	destroy_workqueue(notify_wq);
}
