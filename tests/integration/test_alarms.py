"""Check the alarm test of `make deploy` on the embedded AWS."""

import pytest

from deploy.alarms import check_alarm
from local.deploy import deploy

TEMPLATE = """
Parameters: {Service: {Type: String}}
Resources:
  Key:
    Type: AWS::KMS::Key
    Properties:
      KeyPolicy:
        Version: "2012-10-17"
        Statement:
          - Effect: Allow
            Principal: {AWS: !Sub "arn:aws:iam::${AWS::AccountId}:root"}
            Action: kms:*
            Resource: "*"
          - Effect: Allow
            Principal: {Service: !Ref Service}
            Action: [kms:Decrypt, kms:GenerateDataKey]
            Resource: "*"
  Topic:
    Type: AWS::SNS::Topic
    Properties: {KmsMasterKeyId: !Ref Key}
  TopicPolicy:
    Type: AWS::SNS::TopicPolicy
    Properties:
      Topics: [!Ref Topic]
      PolicyDocument:
        Statement:
          - Effect: Allow
            Principal: {Service: cloudwatch.amazonaws.com}
            Action: sns:Publish
            Resource: !Ref Topic
  Alarm:
    Type: AWS::CloudWatch::Alarm
    Properties:
      Namespace: Nothing
      MetricName: Measured
      Statistic: Sum
      Period: 60
      EvaluationPeriods: 1
      Threshold: 1
      ComparisonOperator: GreaterThanOrEqualToThreshold
      AlarmActions: [!Ref Topic]
"""  # missing data keep the state that a test sets


@pytest.fixture
def alarm_of(embedded_aws, tmp_path):
    """Deploy a stack with an alarm whose topic's key allows a service, and return the alarm's name."""

    def make(stack, service):
        template = tmp_path / "template.yaml"
        template.write_text(TEMPLATE)
        deploy(template, stack, {"Service": service}, embedded_aws.session)
        found = embedded_aws.client("cloudformation").describe_stack_resource(
            StackName=stack, LogicalResourceId="Alarm"
        )
        return found["StackResourceDetail"]["PhysicalResourceId"]

    return make


def test_check_alarm_reports_a_published_notification(embedded_aws, alarm_of):
    alarm = alarm_of("alarms-allowed", "cloudwatch.amazonaws.com")
    result = check_alarm("alarms-allowed", embedded_aws.session)
    assert f"the test of {alarm} published a notification to the topic" in result
    (described,) = embedded_aws.client("cloudwatch").describe_alarms(AlarmNames=[alarm])["MetricAlarms"]
    assert described["StateReason"] == "Test by make deploy of stack alarms-allowed. No action needed."


def test_check_alarm_reports_a_key_that_refuses_cloudwatch(embedded_aws, alarm_of):
    alarm = alarm_of("alarms-refused", "events.amazonaws.com")
    result = check_alarm("alarms-refused", embedded_aws.session)
    assert f"the test of {alarm} FAILED: Failed to execute action" in result
    assert "is not authorized to perform: SNS:Publish" in result
    assert "Allow cloudwatch.amazonaws.com kms:Decrypt and kms:GenerateDataKey" in result


def test_check_alarm_does_not_test_alarms_in_alarm(embedded_aws, alarm_of):
    alarm = alarm_of("alarms-busy", "cloudwatch.amazonaws.com")
    cloudwatch = embedded_aws.client("cloudwatch")
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="a real one")
    result = check_alarm("alarms-busy", embedded_aws.session)
    assert result == "Alarms: not tested, since all 1 alarms of stack alarms-busy are in ALARM."
    (described,) = cloudwatch.describe_alarms(AlarmNames=[alarm])["MetricAlarms"]
    assert described["StateReason"] == "a real one"


def test_check_alarm_reports_a_history_without_an_action(embedded_aws, alarm_of, monkeypatch):
    alarm = alarm_of("alarms-slow", "cloudwatch.amazonaws.com")
    embedded_aws.client("cloudwatch").disable_alarm_actions(AlarmNames=[alarm])
    monkeypatch.setattr("deploy.alarms.ACTION_SECONDS", 0.5)
    result = check_alarm("alarms-slow", embedded_aws.session)
    assert f"the history of {alarm} contains no action 0 s after the test" in result
    assert f"aws cloudwatch describe-alarm-history --alarm-name {alarm}" in result
