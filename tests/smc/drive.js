/*
 * A whole migration by a client that was made for another server: create a code, wait for a source, create a job, start it, watch it,
 * cut over, delete. A line of JSON for each step. usage: node drive.js pop|openapi SOURCE-NAME
 */
'use strict';

const path = require('path');
const { createRequire } = require('module');

const modules = createRequire(path.join(process.env.NODE_MODULES, 'x.js'));
const VERSION = '2019-06-01';
const endpoint = process.env.SMC_ENDPOINT;
const keys = { accessKeyId: process.env.SMC_ACCESS_KEY_ID, accessKeySecret: process.env.SMC_ACCESS_KEY_SECRET };

/* Signature version 1.0; parameters in the query, or in a form. */
function pop() {
  const Client = modules('@alicloud/pop-core').RPCClient;
  const client = new Client({ ...keys, endpoint, apiVersion: VERSION });
  let calls = 0;
  return (action, params) => client.request(action, params || {}, { method: calls++ % 2 ? 'POST' : 'GET', timeout: 20000 });
}

/* ACS3-HMAC-SHA256. */
function openapi() {
  const api = modules('@alicloud/openapi-client');
  const util = modules('@alicloud/tea-util');
  const flat = modules('@alicloud/openapi-util').default;
  const client = new api.default(new api.Config({ ...keys, endpoint: new URL(endpoint).host, protocol: 'HTTPS' }));
  return async (action, params) => {
    const call = new api.Params({
      action, version: VERSION, protocol: 'HTTPS', method: 'POST', authType: 'AK', style: 'RPC', pathname: '/',
      reqBodyType: 'formData', bodyType: 'json',
    });
    const request = new api.OpenApiRequest({ query: flat.query(params || {}) });
    return (await client.callApi(call, request, new util.RuntimeOptions({ autoretry: false }))).body;
  };
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function tell(step, more) {
  process.stdout.write(`${JSON.stringify({ step, ...more })}\n`);
}

async function until(what, check) {
  for (let i = 0; i < 6000; i++) {
    const got = await check();
    if (got) return got;
    await sleep(100);
  }
  throw new Error(`not within ten minutes: ${what}`);
}

async function refused(call, action, params) {
  try {
    await call(action, params);
  } catch (e) {
    return e.code;
  }
  throw new Error(`${action} was not refused`);
}

async function main(kind, name) {
  const call = kind === 'pop' ? pop() : openapi();
  const token = await call('CreateAccessToken', { Name: `for ${kind}`, Count: '2', TimeToLiveInDays: '3' });
  tell('code', { code: token.AccessTokenCode, id: token.AccessTokenId });
  const source = await until('a source', async () => {
    const list = (await call('DescribeSourceServers', { Name: name, State: 'Available' })).SourceServers.SourceServer;
    return list[0];
  });
  tell('source', { source });
  const created = await call('CreateReplicationJob', {
    RegionId: 'cn-hangzhou', SourceId: source.SourceId, Name: `job-of-${kind}`, ImageName: `image-of-${kind}`, RunOnce: false, Frequency: 24,
    MaxNumberOfImageToKeep: 2, SystemDiskSize: source.SystemDiskSize, Tag: [{ Key: 'wave', Value: '1' }],
    ReplicationParameters: '{"bandwidth_limit":0,"compress_level":1,"checksum":true}',
  });
  tell('created', { job: created.JobId });
  const job = async () => (await call('DescribeReplicationJobs', { JobId: [created.JobId] })).ReplicationJobs.ReplicationJob[0];
  const seen = [];
  const reach = (status) => until(status, async () => {
    const now = await job();
    const word = `${now.Status} ${now.BusinessStatus}`.trim();
    if (seen[seen.length - 1] !== word) seen.push(word);
    if (now.Status === 'InError') throw new Error(`${now.ErrorCode}: ${now.StatusInfo}`);
    return now.Status === status && now;
  });
  await reach('Ready');
  await call('StartReplicationJob', { JobId: created.JobId });
  tell('started');
  const waiting = await reach('Waiting');
  await call('CutOverReplicationJob', { JobId: created.JobId, SyncData: false });
  const finished = await reach('Finished');
  tell('finished', { seen, waiting, finished });
  const codes = (await call('ListAccessTokens', { AccessTokenId: [token.AccessTokenId] })).AccessTokens.AccessToken;
  await call('DeleteReplicationJob', { JobId: created.JobId });
  await until('the job is gone', async () => !(await job()));
  await call('DisableAccessToken', { AccessTokenId: token.AccessTokenId });
  const disabled = (await call('ListAccessTokens', { Status: 'unactivated' })).AccessTokens.AccessToken;
  await call('DeleteAccessToken', { AccessTokenId: token.AccessTokenId });
  tell('gone', {
    codes, disabled,
    again: await refused(call, 'StartReplicationJob', { JobId: created.JobId }),
    unknown: await refused(call, 'DescribeNothing', {}),
  });
}

main(process.argv[2], process.argv[3]).catch((e) => {
  process.stderr.write(`${e.stack || e}\n`);
  process.exit(1);
});
