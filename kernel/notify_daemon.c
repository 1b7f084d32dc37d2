// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the daemon asks: items, and the completion of requests.
 */

#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "notify_impl.h"
#include "smb2pdu.h"

static u32 notify_registrations;		/* of all daemons so far */
/* What the daemon was handed last. */
static struct notify_item *notify_inflight;	/* a reference */
static u32 notify_inflight_type;
/* Items in a row before which others waited. */
static unsigned int notify_passed;

/* What has ended waits for what clients wait for, if not for ever. */
#define NOTIFY_MAX_PASSED	8

/* Of change records that wait to be sent: on a connection, and in all. */
#define NOTIFY_MAX_CONN_BYTES	(2 * SMB3_MAX_IOSIZE)
#define NOTIFY_MAX_BYTES	SZ_64M

static void notify_offer_all(void)
{
	struct ksmbd_notify_request *req;
	struct notify_watch *watch;

	list_for_each_entry(watch, &notify_watches, entry) {
		notify_item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_WATCH);
		list_for_each_entry(req, &watch->requests, entry)
			if (req->offered)
				notify_item_queue(&req->item,
						  KSMBD_NOTIFY_ITEM_TYPE_REQUEST);
	}
}

/**
 * ksmbd_notify_register() - a daemon takes up its work
 * @daemon:	port id of its socket
 * @registrations:	set to how many there were, this one included
 *
 * Return:	0, or -EBUSY if there is one already
 */
int ksmbd_notify_register(u32 daemon, u32 *registrations)
{
	int err = 0;

	spin_lock(&notify_lock);
	if (!notify_daemon) {
		notify_daemon = daemon;
		notify_progress = jiffies;
		*registrations = ++notify_registrations;
		notify_offer_all();
	} else {
		err = -EBUSY;
	}
	spin_unlock(&notify_lock);
	return err;
}

/**
 * ksmbd_notify_unregister() - a socket is gone
 * @daemon:	its port id; if it was the daemon's, requests pend without it
 */
void ksmbd_notify_unregister(u32 daemon)
{
	struct ksmbd_notify_request *req, *tmp;
	struct notify_item *item, *next;
	struct notify_watch *watch;

	spin_lock(&notify_lock);
	if (notify_daemon != daemon)
		goto out;
	notify_daemon = 0;
	if (notify_inflight)
		notify_item_put(notify_inflight);
	notify_inflight = NULL;
	list_splice_init(&notify_ended, &notify_items);
	list_for_each_entry_safe(item, next, &notify_items, entry)
		notify_item_unqueue(item);

	list_for_each_entry(watch, &notify_watches, entry) {
		watch->known = false;
		watch->armed = false;
		watch->rescan = watch->promised;
		list_for_each_entry(req, &watch->requests, entry)
			req->known = false;
	}
	list_for_each_entry_safe(req, tmp, &notify_waiting, waiting)
		notify_request_promise(req);
out:
	spin_unlock(&notify_lock);
}

/* The daemon has handled what it was handed last. */
static void notify_ack(void)
{
	struct notify_item *item = notify_inflight;

	lockdep_assert_held(&notify_lock);

	if (!item)
		return;
	notify_inflight = NULL;
	notify_progress = jiffies;
	switch (notify_inflight_type) {
	case KSMBD_NOTIFY_ITEM_TYPE_WATCH:
		item_watch(item)->armed = true;
		break;
	case KSMBD_NOTIFY_ITEM_TYPE_REQUEST:
		notify_request_promise(item_request(item));
		break;
	}
	notify_item_put(item);
}

static struct notify_item *notify_first(void)
{
	struct list_head *queue = &notify_items;

	lockdep_assert_held(&notify_lock);

	if (list_empty(queue) ||
	    (!list_empty(&notify_ended) && notify_passed == NOTIFY_MAX_PASSED)) {
		queue = &notify_ended;
		notify_passed = 0;
	} else if (!list_empty(&notify_ended)) {
		notify_passed++;
	}
	return list_first_entry_or_null(queue, struct notify_item, entry);
}

/**
 * ksmbd_notify_next() - hand out an item, acknowledging the last
 * @daemon:	port id of the calling socket
 * @next:	what is handed out; the caller puts @next->dir
 *
 * Return:	0, -EPERM if @daemon is not registered, -EAGAIN for no item
 */
int ksmbd_notify_next(u32 daemon, struct ksmbd_notify_next *next)
{
	struct ksmbd_notify_request *req;
	struct notify_watch *watch;
	struct notify_item *item;
	int err = 0;

	memset(next, 0, sizeof(*next));
	spin_lock(&notify_lock);
	if (daemon != notify_daemon) {
		err = -EPERM;
		goto out;
	}
	notify_ack();
again:
	item = notify_first();
	if (!item) {
		err = -EAGAIN;
		goto out;
	}
	/* Cancelled before the daemon knew, and its watch has ended since. */
	if (item->type == KSMBD_NOTIFY_ITEM_TYPE_REQUEST &&
	    !item_request(item)->watch->fp) {
		notify_request_promise(item_request(item));
		notify_item_unqueue(item);
		goto again;
	}
	/* The queue's reference becomes that of notify_inflight. */
	list_del_init(&item->entry);
	notify_inflight = item;
	notify_inflight_type = item->type;
	next->type = item->type;

	if (item_is_request(item)) {
		req = item_request(item);
		watch = req->watch;
		next->request = item->id;
		next->length = req->limit;
		if (item->type == KSMBD_NOTIFY_ITEM_TYPE_REQUEST) {
			req->known = true;
			if (req->taken)
				notify_item_queue(item,
						  KSMBD_NOTIFY_ITEM_TYPE_CANCEL);
		}
	} else {
		watch = item_watch(item);
		next->filter = watch->filter;
		next->length = watch->ceiling;
		next->tree = watch->tree;
		if (item->type == KSMBD_NOTIFY_ITEM_TYPE_WATCH) {
			next->dir = get_file(watch->dir);
			next->rescan = watch->rescan;
			strscpy(next->user, watch->user);
			strscpy(next->share, watch->share);
			watch->rescan = false;
			watch->known = true;
		}
	}
	next->watch = watch->item.id;
out:
	spin_unlock(&notify_lock);
	return err;
}

/* Whether @daemon, the port id of the calling socket, is registered. */
bool ksmbd_notify_registered(u32 daemon)
{
	return daemon == READ_ONCE(notify_daemon);
}

/**
 * ksmbd_notify_unpop() - the item handed out last did not reach the daemon
 * @daemon:	port id of the calling socket
 */
void ksmbd_notify_unpop(u32 daemon)
{
	struct notify_item *item;

	spin_lock(&notify_lock);
	item = notify_inflight;
	if (daemon != notify_daemon || !item)
		goto out;
	notify_inflight = NULL;
	/* If it was queued again, it is for something that supersedes it. */
	if (list_empty(&item->entry) &&
	    (item->type != KSMBD_NOTIFY_ITEM_TYPE_WATCH ||
	     item_watch(item)->fp)) {
		if (item->type == KSMBD_NOTIFY_ITEM_TYPE_WATCH)
			item_watch(item)->rescan = item_watch(item)->promised;
		list_add(&item->entry, notify_queue(item->type));
	} else {
		notify_item_put(item);
	}
out:
	spin_unlock(&notify_lock);
}

static __le32 errno_status(int err)
{
	switch (err) {
	case ENOMEM:
	case ENOSPC:
	case EMFILE:
	case ENFILE:
		return STATUS_INSUFFICIENT_RESOURCES;
	case EACCES:
	case EPERM:
		return STATUS_ACCESS_DENIED;
	case ENOENT:
	case ESTALE:
		return STATUS_DELETE_PENDING;
	case ENOSYS: /* turned off: as if there was no notify */
		return STATUS_NOT_IMPLEMENTED;
	default:
		return STATUS_NOT_SUPPORTED;
	}
}

/**
 * ksmbd_notify_armed() - the watch of the item handed out last is not armed
 * @daemon:	port id of the calling socket
 * @id:		watch id
 * @err:	why, a positive errno
 *
 * Return:	0, -EPERM if @daemon is not registered, -ENOENT for no watch
 */
int ksmbd_notify_armed(u32 daemon, u64 id, int err)
{
	struct ksmbd_notify_request *req;
	struct notify_watch *watch;
	int rc = -ENOENT;

	spin_lock(&notify_lock);
	if (daemon != notify_daemon) {
		rc = -EPERM;
		goto out;
	}
	if (!notify_inflight)
		goto out;
	watch = item_is_request(notify_inflight) ?
			item_request(notify_inflight)->watch :
			item_watch(notify_inflight);
	if (watch->item.id != id || !watch->fp)
		goto out;
	/* No STATUS_PENDING for what never pended, and no unwatch. */
	list_for_each_entry(req, &watch->requests, entry)
		req->refused = !req->handled;
	watch->known = false;
	notify_watch_close(watch, errno_status(err), NULL);
	rc = 0;
out:
	spin_unlock(&notify_lock);
	return rc;
}

/**
 * ksmbd_notify_claim() - the daemon is about to complete a request
 * @daemon:	port id of the calling socket
 * @id:		request id
 * @size:	bytes that ksmbd_notify_add() may need in all
 *
 * Until ksmbd_notify_complete() the caller has the identity of the request's
 * user, and nobody else can end the request.
 *
 * Return:	the request or an ERR_PTR: -EPERM if @daemon is not registered,
 *		-ENOENT if the request is gone, -ENOMEM
 */
struct ksmbd_notify_request *ksmbd_notify_claim(u32 daemon, u64 id,
						size_t size)
{
	struct ksmbd_notify_request *req, *found = ERR_PTR(-ENOENT);
	void *response;

	/* smbConvertToUTF16() terminates its output: one unit more. */
	response = kvzalloc(sizeof(__be32) +
			    sizeof(struct smb2_change_notify_rsp) +
			    size + sizeof(__le16), KSMBD_DEFAULT_GFP);
	if (!response)
		return ERR_PTR(-ENOMEM);

	spin_lock(&notify_lock);
	if (daemon != notify_daemon) {
		found = ERR_PTR(-EPERM);
		goto out;
	}
	hash_for_each_possible(notify_requests, req, hash, id) {
		if (req->item.id != id || !req->known)
			continue;
		found = req;
		/* It stays with its watch: who ends that notes a status. */
		req->taken = true;
		hash_del(&req->hash);
		notify_request_set_handled(req);
		req->watch->promised = true;
		req->response = response;
		req->dir = get_file(req->watch->dir);
		response = NULL;
		break;
	}
out:
	spin_unlock(&notify_lock);
	kvfree(response);
	/* Without an identity to check, nothing can be told. */
	if (!IS_ERR(found) && ksmbd_override_fsids(found->work))
		found->lost = true;
	return found;
}

/*
 * Whether the records of @req may wait to be sent. A client that does not read
 * has what waits for it bounded, and all of them have; who reads may always
 * have one response of a usual size.
 */
static bool request_account(struct ksmbd_notify_request *req)
{
	struct ksmbd_notify_conn *nc = &req->work->conn->notify;

	lockdep_assert_held(&notify_lock);

	if (nc->bytes + req->length > NOTIFY_MAX_CONN_BYTES)
		return false;
	if (notify_bytes + req->length > NOTIFY_MAX_BYTES &&
	    (nc->bytes || req->length > SZ_64K))
		return false;
	req->bytes = req->length;
	nc->bytes += req->bytes;
	notify_bytes += req->bytes;
	return true;
}

/* All records were withheld: @req goes on as if they had never been. */
static void request_unclaim(struct ksmbd_notify_request *req)
{
	lockdep_assert_held(&notify_lock);

	if (req->status) {
		list_del_init(&req->entry);
		notify_request_finish(req, req->status);
		return;
	}
	req->taken = false;
	hash_add(notify_requests, &req->hash, req->item.id);
	notify_request_send(req);
}

/**
 * ksmbd_notify_complete() - end a claimed request
 * @req:	the request
 * @status:	0 for records, or enum ksmbd_notify_status
 *
 * Return:	0, or -ENODATA if all records were withheld and the request
 *		still pends
 */
int ksmbd_notify_complete(struct ksmbd_notify_request *req, u32 status)
{
	__le32 nt_status = STATUS_SUCCESS;
	void *unused = NULL;
	int err = 0;

	if (req->work->saved_cred)
		ksmbd_revert_fsids(req->work);
	fput(req->dir);
	req->dir = NULL;

	if (status == KSMBD_NOTIFY_STATUS_DELETE_PENDING)
		nt_status = STATUS_DELETE_PENDING;
	else if (status || req->lost || req->length > req->limit)
		nt_status = STATUS_NOTIFY_ENUM_DIR;
	else if (!req->length)
		err = -ENODATA;

	if (err) {
		kvfree(req->response);
		req->response = NULL;
		req->listed = NULL;
	}

	spin_lock(&notify_lock);
	if (err) {
		request_unclaim(req);
	} else {
		if (nt_status == STATUS_SUCCESS && !request_account(req))
			nt_status = STATUS_NOTIFY_ENUM_DIR;
		if (nt_status != STATUS_SUCCESS)
			swap(unused, req->response);
		list_del_init(&req->entry);
		req->status = nt_status;
		req->done = true;
		notify_request_send(req);
	}
	spin_unlock(&notify_lock);
	kvfree(unused);
	return err;
}
